"""Tests of the room remote."""
