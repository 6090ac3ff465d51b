"""Tests of whole files and folders answered."""
