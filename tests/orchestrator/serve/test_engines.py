"""An engine is one factory and one entry in a table: a toy one is entered, serves, and goes."""

from pathlib import Path

import openai
import pytest
from pydantic import ValidationError

from cluster.session import Session
from orchestrator.config.serve import ServeSpec
from orchestrator.replicas.endpoint import EndpointSpec
from orchestrator.serve.deploy import deploy, undeploy
from orchestrator.serve.served_base import served_base
from workers.config.engines import ENGINES
from workers.config.model import ModelSpec


@pytest.fixture
def echo() -> "pytest.MonkeyPatch":
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ENGINES, "echo", "tests.orchestrator.replicas.echo_engine:EchoEngine")
        yield patch


def test_a_toy_engine_is_entered_serves_and_goes(
    ray_cluster: Session, tiny_model_dir: Path, tmp_path: Path, echo: pytest.MonkeyPatch
) -> None:
    serve = ServeSpec(port=0, engine="echo")
    base = served_base(
        f"sqlite:///{tmp_path}/moetune.db", tmp_path, None, ModelSpec(path=str(tiny_model_dir))
    )
    endpoint = deploy(serve, base)
    try:
        client = openai.OpenAI(api_key="none", base_url=endpoint.openai_url, max_retries=0)
        asked = {"model": endpoint.base, "prompt": "abc def", "max_tokens": 16}
        whole = client.completions.create(**asked).choices[0]
        assert (whole.text, whole.finish_reason) == ("fed cba", "stop")
        cut = client.completions.create(**asked, stop=["d"]).choices[0]
        assert (cut.text, cut.finish_reason) == ("fe", "stop")
    finally:
        undeploy()
    echo.undo()
    with pytest.raises(ValidationError, match="there is no engine 'echo'; there are continuous"):
        ServeSpec(engine="echo")


def test_a_specification_of_ones_own_takes_the_engine_that_it_names(
    tmp_path: Path, echo: pytest.MonkeyPatch
) -> None:
    """As in a RayService, which no `deploy` of ours makes."""
    values = {"model": {"path": "base"}, "store_url": "sqlite://", "storage": str(tmp_path)}
    made = EndpointSpec.model_validate({"serve": {"engine": "echo"}, **values})
    assert made.engine == ENGINES["echo"]
    assert EndpointSpec.model_validate({"serve": {}, **values}).engine == ENGINES["continuous"]
