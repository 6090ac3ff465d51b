"""Tests of more machines than one."""
