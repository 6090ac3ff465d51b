"""Kills, failing calls, full disks and power losses: a change is done or not done, never half."""
