"""From run records to tables, sentences, pictures and a page; nothing here knows torch.

Reading order: ``frames`` and ``content`` (everything that one report is made of), ``numbers``,
``sentences``; ``svg``, ``figures``, ``mistakes``, ``page_tables``, ``page``; ``report`` (which files
there are), ``check``; ``contrast`` (a comparison in a terminal). To the left: ``bench``. To the right: ``cli``.
"""
