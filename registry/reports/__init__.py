"""From run records to tables, sentences, pictures and a page; nothing here knows torch.

Reading order: ``content``, ``statistics``, ``frames``, ``numbers``, ``sentences``; ``figures`` and the page
(``page_content``, ``page_tables``, ``page_figures``, ``page_report``, ``page``, drawn by ``svg``,
``size_chart``); ``mistakes``, ``report`` (which files there are), ``check``. To the left: ``bench``. To the right:
``cli``.
"""
