"""Which replica gets a request. Pure: events and `now` come in, a choice goes out."""
