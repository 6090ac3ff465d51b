"""What a task is, its rows and its metrics; nothing here knows torch.

Reading order: ``spec``, ``tables``, ``rows``, ``loading``, ``metrics``; ``sample`` holds the bundled rows. To the
left: ``store``. To the right: ``stats``.
"""
