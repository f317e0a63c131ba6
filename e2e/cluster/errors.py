"""What can go wrong with the cluster itself, as opposed to what runs on it."""


class ClusterError(Exception):
    """The cluster cannot be built, started or stopped; the message says what to do."""
