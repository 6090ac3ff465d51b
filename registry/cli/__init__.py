"""The command line: options and words in, one call of a room to the left, words and exit codes out.

Reading order: ``main``, ``options``, ``data``, then a file for each group of commands: ``store``, ``predict``,
``serve``, ``hub``, ``train``, ``bench``, ``compare``, ``lists``; ``progress`` shows what goes on, and the demo all of
it. To the left: everything.
"""
