"""What goes wrong between us and a cluster."""


class ClusterError(RuntimeError):
    """A cluster that cannot be used. The message is one line: what failed, where, what to do."""


class ClusterGone(ClusterError):  # noqa: N818
    """The head of the cluster that this process was connected to is dead. Ray's own end would now
    wait for it for a minute: whoever has nothing else to do leaves by `os._exit`."""
