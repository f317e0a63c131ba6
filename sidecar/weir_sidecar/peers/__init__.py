"""The other sidecars of the service: who is there, what load they have, and the way to them."""
