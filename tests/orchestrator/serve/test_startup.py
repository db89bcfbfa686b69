"""What is said of an endpoint that does not come up."""

from orchestrator.serve.startup import last_words


def test_of_what_a_replica_said_thelast_words_are_told() -> None:
    told = (
        "Error:\nTraceback (most recent call last):\n  File …\nworkers.spec.InputError: no room\n"
    )
    assert last_words(told) == "no room"
    assert last_words("Deploying failed.\n\n") == "Deploying failed."
    assert not last_words("")
