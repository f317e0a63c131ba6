"""Several sidecars as one fleet: what their acting together costs, and what it brings."""
