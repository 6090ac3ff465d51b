"""A store on object storage behind a bad network."""
