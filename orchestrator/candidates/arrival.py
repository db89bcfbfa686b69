"""An adapter from elsewhere becomes a version: read, fitted to the base, measured against it."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.placement import say
from cluster.session import session
from orchestrator.candidates.yardstick import Yardstick
from orchestrator.evaluation.compare import BASE, evaluation, on_cluster
from orchestrator.registry.models import Version
from orchestrator.registry.registry import Registry
from workers.adapter import folder as folders
from workers.adapter.digest import base_digest, folder_digest
from workers.adapter.manifest import Manifest, Origin, base_id
from workers.config.base import InputError, StorageError
from workers.config.metrics import value_at

ADAPTER = "adapter"


@dataclass(frozen=True)
class Arrival:
    """An adapter's folder, and what it is measured by."""

    registry: Registry
    folder: Path
    yardstick: Yardstick

    def version(self, address: str | None) -> Version:
        """The folder's version: the one that it is already, or one that is measured on the cluster
        at `address` (None: a local one) and registered. InputError leaves nothing behind."""
        folders.refuse_pickles(self.folder)
        digest = folder_digest(self.folder)
        if found := self._registered(digest):
            return found
        rows = self.yardstick.check()
        if found := self._came_before(digest, rows):
            say(f"{self.folder}: was measured on these rows before, as version {found.id}")
            return found
        with self.registry.staging() as staged:
            try:
                return self._new(staged / ADAPTER, digest, address)
            except StorageError:
                raise
            except InputError as error:  # it knows the copy
                said = str(error).replace(str(staged / ADAPTER), str(self.folder))
                raise InputError(said) from None

    def _registered(self, digest: str) -> Version | None:
        """The version whose very files these are."""
        return next((one for one in self.registry.versions() if one.digest == digest), None)

    def _came_before(self, digest: str, rows: str) -> Version | None:
        for version in reversed(self.registry.versions(self.yardstick.study)):
            with suppress(StorageError):  # a lost one
                manifest = self.registry.manifest(version)
                came = manifest.origin and manifest.origin.digest == digest
                if (
                    came
                    and manifest.data_digest == rows
                    and self.yardstick.measured_alike(manifest)
                ):
                    return version
        return None

    def _new(self, copy: Path, digest: str, address: str | None) -> Version:
        from workers.adapter.convert import import_folder
        from workers.adapter.files import read
        from workers.models.compatibility import check_adapter

        import_folder(self.folder, copy)
        files = read(copy)
        model = self.yardstick.spec.model
        self._check_base(files.manifest)
        check_adapter(model, files, str(self.folder))
        origin = Origin(
            path=str(self.folder.resolve()),
            digest=digest,
            base=files.config.base_model_name_or_path,
        )
        if origin.base and base_id(origin.base) != base_id(model.path):
            say(f"{self.folder}: calls its base {origin.base}; it is measured on {model.path}")
        with session(address):
            mine, base = self._measured(copy)
        lineage = {
            **mine,
            "origin": origin.model_dump(mode="json"),
            "base_metrics": base,
            "earlier_data": _earlier(files.manifest, mine["data_digest"]),
        }
        metrics = lineage.pop("metrics")
        version = self.registry.register(self.yardstick.study, None, copy, metrics, lineage)
        say(f"{self.folder}: is version {version.id}: {self._told(metrics, base)}")
        return version

    def _measured(self, copy: Path) -> tuple[dict[str, Any], dict[str, Any]]:
        """What the adapter gave, and the base's metrics: measured too, unless that is known."""
        from workers.train.evaluation.expert_tasks import facts_of_folder

        like, spec = self.yardstick.like, self.yardstick.spec
        known = like.base_metrics if like else {}
        both: dict[str, Path | None] = {ADAPTER: copy, **({} if known else {BASE: None})}
        search = self.yardstick.search
        demand = evaluation(search.cpus_per_worker, search.gpus_per_worker)
        found = on_cluster(facts_of_folder, spec, both, demand, search.wait_seconds)
        mine = found[ADAPTER]
        if like and like.base.digest not in (None, mine["base"]["digest"]):
            raise InputError(
                f"study {self.yardstick.study}: its base model {spec.model.path} has changed since "
                "its versions were measured"
            )
        return mine, known or found[BASE]["metrics"]

    def _check_base(self, manifest: Manifest | None) -> None:
        """An adapter that knows its base's digest must be of this one, as far as that is known
        here."""
        theirs = manifest.base.digest if manifest else None
        path, like = self.yardstick.spec.model.path, self.yardstick.like
        known = like.base.digest if like else None
        if theirs and not known and Path(path).is_dir():
            known = base_digest(path)
        if theirs and known and theirs != known:
            assert manifest is not None
            raise InputError(
                f"{self.folder}: belongs to another base model, {manifest.base.path}: the weights "
                f"of {path} differ"
            )

    def _told(self, mine: Mapping[str, Any], base: Mapping[str, Any]) -> str:
        metric = self.yardstick.metric
        values = [value_at(metrics, metric) for metrics in (mine, base)]
        own, bases = ("none" if value is None else f"{value:.4g}" for value in values)
        return f"{metric} {own}, the bare base's {bases}"


def _earlier(manifest: Manifest | None, now: str) -> tuple[str, ...]:
    """Rows that an adapter of ours has learned from, but for these."""
    if manifest is None:
        return ()
    own = (*manifest.earlier_data, *filter(None, (manifest.data_digest,)))
    return tuple(digest for digest in dict.fromkeys(own) if digest != now)
