"""What a task is, its rows and its metrics; nothing here knows torch.

Reading order: ``spec``, ``loading``, ``task_data``, ``rows``, ``labels``, ``label_names``, ``cells`` (a table),
``tables`` over ``delimited`` and ``files``, ``hub``, ``metrics``; ``sample`` holds the bundled rows. To the left:
``store``. To the right: ``stats``.
"""
