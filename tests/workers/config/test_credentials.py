"""Passwords and keys in URIs."""

import pytest

from workers.config.base import InputError, Spec, validated
from workers.config.credentials import without_credentials
from workers.config.data import DataSpec
from workers.config.model import ModelSpec
from workers.config.train import CheckpointSpec


@pytest.mark.parametrize(
    ("uri", "without"),
    [
        ("postgresql://me:secret@host:5432/db", "postgresql://me@host:5432/db"),
        ("postgresql+psycopg://me:se/c?r%40et@host/db", "postgresql+psycopg://me@host/db"),
        ("postgresql://me:se@cret@host/db", "postgresql://me@host/db"),
        ("postgresql://:secret@host/db", "postgresql://@host/db"),
        ("postgresql://me:1234@host/db", "postgresql://me@host/db"),
        ("postgresql:///db?host=/run&password=secret", "postgresql:///db?host=/run"),
        ("postgresql:///db?password=secret", "postgresql:///db"),
        ("postgresql:///db?p%61ssword=secret&user=me", "postgresql:///db?user=me"),
        ("postgresql:///db?sslpassword=secret&sslkey=/key", "postgresql:///db?sslkey=/key"),
        ("mysql://host/db?passwd=secret", "mysql://host/db"),
        ("s3://AKIA:sec/ret@bucket/x?region=eu", "s3://AKIA@bucket/x?region=eu"),
        ("s3://bucket/x?secret_key=a&access_key=b&scheme=http", "s3://bucket/x?scheme=http"),
        ("https://host/rows.parquet?X-Amz-Signature=a", "https://host/rows.parquet"),
        ("abfs://box@host/x?sig=a", "abfs://box@host/x"),
    ],
)
def test_what_is_secret_is_left_out(uri: str, without: str) -> None:
    assert without_credentials(uri) == without
    assert without_credentials(without) == without


@pytest.mark.parametrize(
    "uri",
    [
        "sqlite:////data/a:b@c/moetune.db",
        "postgresql://me@host:5432/db?user=a@b",
        "postgresql://[::1]:5432/db?application_name=x@y",
        "hdfs://host:8020/user@home/rows",
        "gs://anonymous@bucket/x",
        "s3://bucket/x?endpoint_override=127.0.0.1:9000&scheme=http",
        "hub:name:config#train",
        "/home/me:you@work/rows.jsonl",
        "/data/what?token=1/rows.jsonl",
        "s3://bucket/part-?-tokenized.parquet",
        "postgresql://me@host/db?passfile=/home/me/.pgpass",
        "",
    ],
)
def test_what_is_not_secret_stays(uri: str) -> None:
    assert without_credentials(uri) == uri


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        (DataSpec, "train"),
        (DataSpec, "validation"),
        (CheckpointSpec, "upload"),
        (ModelSpec, "path"),
    ],
)
def test_a_uri_with_a_key_is_refused_unseen(spec: type[Spec], field: str) -> None:
    values = {"train": "a", "validation": "b"} if spec is DataSpec else {}
    with pytest.raises(InputError, match=rf"job: {field}: .*AWS_SECRET_ACCESS_KEY") as caught:
        validated(spec, {**values, field: "s3://AKIA:topmost@bucket/rows"}, "job")
    assert "topmost" not in str(caught.value)
