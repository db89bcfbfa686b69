"""What goes wrong between us and a cluster."""


class ClusterError(RuntimeError):
    """A cluster that cannot be used. The message is one line: what failed, where, what to do."""
