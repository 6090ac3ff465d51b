"""Files, names and sets that are not what they should be: refused, never believed."""
