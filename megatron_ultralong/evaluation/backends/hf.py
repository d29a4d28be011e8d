"""A model under evaluation: a plain Hugging Face folder, loaded with transformers and nothing of Megatron.

What is judged is what users load. Hidden states and logits are apart, so that a task computes logits only for
the positions it looks at: [S, V] logits of a long sequence never exist. No attention mask is passed: batches
are padded on the right, where causal attention keeps the padding from touching anything before it, and sdpa
then needs no [S, S] mask.
"""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path
from typing import Any, Literal

import torch

from megatron_ultralong.engine import cpu_products
from megatron_ultralong.errors import UserError
from megatron_ultralong.files import read_json

Dtype = Literal["fp32", "bf16"]

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclasses.dataclass(frozen=True)
class ModelInfo:
    """What config.json says about a model, read without its weights."""

    folder: Path
    context_length: int
    """max_position_embeddings."""
    vocab_size: int
    config: dict[str, Any]
    """All of it."""

    @property
    def rope_scaling(self) -> dict[str, Any] | None:
        """`rope_scaling`, or `rope_parameters` where transformers 5 wrote the file."""
        return self.config.get("rope_scaling") or self.config.get("rope_parameters")


def read_info(folder: Path) -> ModelInfo:
    """Read config.json.

    Raises:
        UserError: the folder or its config.json is missing, or a field is.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder; give a model in Hugging Face format.")
    path = folder / "config.json"
    config = read_json(path, "the model's configuration", "give a folder in Hugging Face format")
    context_length, vocab_size = config.get("max_position_embeddings"), config.get("vocab_size")
    if not (isinstance(context_length, int) and isinstance(vocab_size, int)):
        raise UserError(f"{path}: max_position_embeddings or vocab_size is missing; copy the model's config.json anew.")
    return ModelInfo(folder, context_length, vocab_size, config)


class LanguageModel:
    """A causal language model, ready to be asked.

    Args:
        info: from `read_info`.
        dtype: precision of weights and activations.

    Raises:
        UserError: weights are missing or broken, or the logits are more than the head's product.
    """

    def __init__(self, info: ModelInfo, dtype: Dtype = "fp32") -> None:
        self.info = info
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if self.device.type == "cpu" and dtype == "bf16":
            cpu_products.ensure_fast()
        self._model = _load(info.folder, _DTYPES[dtype]).to(self.device).eval()
        self._head = self._model.get_output_embeddings()
        words = inspect.signature(self._model.base_model.forward).parameters
        self._cache_word = "cache" if "cache" in words else "past_key_values"  # renamed in transformers 5
        self._check_head()

    @torch.inference_mode()
    def hidden(self, tokens_BS: torch.Tensor, cache: Any = None) -> torch.Tensor:
        """Final hidden states.

        Args:
            tokens_BS: int64 [B, S], padded on the right with anything.
            cache: transformers' cache of what stands before them, which takes them in; None: nothing does.

        Returns:
            [B, S, D] on the model's device.
        """
        kept = {} if cache is None else {self._cache_word: cache}
        output = self._model.base_model(input_ids=tokens_BS.to(self.device), use_cache=cache is not None, **kept)
        return output.last_hidden_state

    @property
    def config(self) -> Any:
        """transformers' configuration of the model."""
        return self._model.config

    @torch.inference_mode()
    def logits(self, hidden_nD: torch.Tensor) -> torch.Tensor:
        """Logits fp32 [n, V] of hidden states [n, D]."""
        return self._head(hidden_nD).float()

    @torch.inference_mode()
    def _check_head(self) -> None:
        """Models that scale or cap their logits (Granite, Cohere) would be judged wrongly: say so."""
        tokens_BS = torch.arange(min(8, self.info.vocab_size), device=self.device)[None]
        whole = self._model(input_ids=tokens_BS, use_cache=False).logits[0].float()
        ours = self.logits(self.hidden(tokens_BS)[0])
        if not torch.allclose(ours, whole, rtol=1e-2, atol=1e-2 * float(whole.abs().max())):
            raise UserError(
                f"{self.info.folder}: {type(self._model).__name__} changes its logits after the output layer, which "
                "evaluation does not follow; evaluate a model of the Llama kind."
            )


def _load(folder: Path, dtype: torch.dtype) -> Any:
    """The model of `folder`; every weight must be there, since transformers draws missing ones at random."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            folder,
            local_files_only=True,
            trust_remote_code=False,
            dtype=dtype,
            attn_implementation="sdpa",
            output_loading_info=True,
        )
    except Exception as error:  # whatever safetensors and transformers raise is about the files
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{folder}: the model cannot be loaded ({reason}); copy or export it anew.") from None
    if report["missing_keys"]:
        raise UserError(f"{folder}: the weight {min(report['missing_keys'])} is missing; copy or export it anew.")
    return model
