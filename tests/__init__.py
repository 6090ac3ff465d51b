"""The promises of the package, one file per module and a few that cross modules."""
