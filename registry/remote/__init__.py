"""A store on object storage: the promises of a store on disk, kept by conditional puts.

Reading order: ``object_store`` (every change is one put that holds only where nobody was quicker), ``object_reader``,
``objects`` (S3, GCS, Azure through obstore), ``cache``, ``syncing`` (any store to any other). Knows no torch. To the
left: ``store``. To the right: ``tasks``.
"""
