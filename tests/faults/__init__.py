"""Experiments that try to break the store: quick forms run as tests, long ones in ``scripts/torture``.

Each ``try_*`` function runs one experiment of any size and returns a ``Verdict``; the tests ask for the quick sizes.
"""
