"""A model on the Hugging Face hub, or in a folder as the hub keeps it, by way of huggingface_hub's own mixin."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, cast

from files.packages import needed
from generative.weights import weights_hash
from launch.errors import UserError, as_user_error, one_line
from launch.paths import typed_path
from launch.use.load import CARD
from lightning_modules import TrainingModule

if TYPE_CHECKING:
    from triptych.model import Model

TAGS = ["triptych"]


class OnHub:
    """What a model has to do with the hub.

    Args:
        module: The trained module.
        write: Writes it as an export into a folder, if its weights have a hash; None: it came from no folder.
    """

    def __init__(self, module: TrainingModule, write: Callable[[Path, str], object] | None = None) -> None:
        self.module = module
        self._write = write

    def save_pretrained(self, folder: str | Path, **options: Any) -> None:
        """Write the model as ``export.py`` does, with the hub's tags on its card.

        Args:
            folder: New or empty, or an earlier export, which is replaced.
            **options: As ``huggingface_hub.ModelHubMixin.save_pretrained`` takes them.

        Raises:
            UserError: huggingface_hub is missing, the folder holds something else, or the weights have changed since the model
                was loaded.
        """
        _mixin()(self).save_pretrained(folder, **options)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Upload the model to the hub; its card has no licence until you add one.

        Args:
            repo_id: ``OWNER/NAME``; it is made where it does not exist.
            **options: As ``huggingface_hub.ModelHubMixin.push_to_hub`` takes them, such as ``private=True``.

        Returns:
            Address of the commit.

        Raises:
            UserError: huggingface_hub is missing, or the weights have changed since the model was loaded.
        """
        return _mixin()(self).push_to_hub(repo_id, **options)

    @classmethod
    def from_pretrained(cls, name: str | Path, *, device: str = "auto", **options: Any) -> Model:
        """Load a model of the hub, or of a folder; nothing in it is run.

        Args:
            name: ``OWNER/NAME``, or a folder that ``save_pretrained`` or ``export.py`` wrote.
            device: As for ``load``.
            **options: As ``huggingface_hub.ModelHubMixin.from_pretrained`` takes them, such as ``revision="v1"``.

        Raises:
            UserError: huggingface_hub is missing, or there is no such model.
            ExportError: The export is damaged, or one of another version.
        """
        mixin, folder = _mixin(), typed_path("name", name)
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError

        try:
            return mixin.from_pretrained(str(folder) if folder.is_dir() else str(name), device=device, **options).model
        except (HfHubHTTPError, HFValidationError, OSError) as error:
            raise UserError(
                f"{name} is no folder and no model of the hub that can be read: {one_line(error)}"
            ) from error


@cache
def _mixin() -> Any:
    with as_user_error(), needed("huggingface_hub", extra="hub", by="a model of the hub"):
        from huggingface_hub import ModelHubMixin, snapshot_download
        from huggingface_hub.repocard import metadata_load, metadata_save

    import triptych

    class HubModel(ModelHubMixin, library_name=TAGS[0], tags=list(TAGS)):
        """A model as the mixin sees it."""

        def __init__(self, model: OnHub) -> None:
            self.model = model
            self._hub_mixin_config = {"library": TAGS[0], "version": triptych.__version__}

        def save_pretrained(self, save_directory: str | Path, **options: Any) -> str | None:
            """Write the export first: the mixin removes a config.json before anything could refuse the folder."""
            if self.model._write is None:
                raise UserError("this model came from no folder: save what triptych.load gives.")
            folder = typed_path("save_directory", save_directory)
            self.model._write(folder, weights_hash(self.model.module.network))
            return super().save_pretrained(folder, **options)

        def push_to_hub(self, repo_id: str, **options: Any) -> str:
            """Write an export that is thrown away first: the mixin makes the repository before anything could refuse."""
            with TemporaryDirectory() as folder:
                self.save_pretrained(Path(folder, "export"))
            return cast(str, super().push_to_hub(repo_id, **options))

        def _save_pretrained(self, save_directory: Path) -> None:
            head = metadata_load(save_directory / CARD) or {}
            own = self._hub_mixin_info.model_card_data
            head["library_name"] = own.library_name
            head["tags"] = list(dict.fromkeys([*head.get("tags", []), *(own.tags or [])]))
            metadata_save(save_directory / CARD, head)

        @classmethod
        def _from_pretrained(
            cls,
            *,
            model_id: str,
            revision: str | None,
            cache_dir: str | Path | None,
            force_download: bool,
            local_files_only: bool,
            token: str | bool | None,
            **model_kwargs: Any,
        ) -> HubModel:
            folder = model_id
            if not Path(model_id).is_dir():
                folder = snapshot_download(
                    model_id,
                    revision=revision,
                    cache_dir=cache_dir,
                    force_download=force_download,
                    local_files_only=local_files_only,
                    token=token,
                )
            return cls(triptych.load(folder, **model_kwargs))

    return HubModel
