"""The text encoder of a Stable Diffusion: prompts as its UNet's cross-attention reads them."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer


class PromptEncoder:
    """A frozen text encoder, and the tokens that stand around a prompt.

    Args:
        text_encoder: on its device and in its dtype.
        tokenizer: of words; ``None`` where the model has none, as single files. All versions 1 and
            2 have the vocabulary of CLIP, so that of any CLIP serves.
        first, last, padding: tokens before a prompt, after it, and after that.

    Raises:
        ValueError: the text encoder does not know these tokens.
    """

    def __init__(
        self,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer | None,
        *,
        first: int,
        last: int,
        padding: int,
    ):
        self.text_encoder = text_encoder.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.first, self.last, self.padding = first, last, padding
        if max(first, last, padding) >= self.vocabulary:
            raise ValueError(
                f"the tokenizer gives token {max(first, last, padding)}, and the text encoder "
                f"knows {self.vocabulary}"
            )

    @classmethod
    def of(cls, text_encoder: CLIPTextModel, tokenizer: CLIPTokenizer) -> "PromptEncoder":
        """The encoder with the tokens that its tokenizer puts around a prompt."""
        length = text_encoder.config.max_position_embeddings
        tokens = tokenizer("", padding="max_length", max_length=length).input_ids
        return cls(text_encoder, tokenizer, first=tokens[0], last=tokens[1], padding=tokens[-1])

    @property
    def length(self) -> int:
        """Tokens of a prompt, with those around it."""
        return self.text_encoder.config.max_position_embeddings

    @property
    def vocabulary(self) -> int:
        """The number of tokens that the encoder knows."""
        return self.text_encoder.config.vocab_size

    @torch.no_grad()
    def states(self, tokens: Sequence[int] = ()) -> Tensor:
        """The encoder's last hidden state of a prompt, ``(1, length, C)``.

        Args:
            tokens: of the prompt, without those around it; those that are too many are left out.
        """
        whole = [self.first, *tokens[: self.length - 2], self.last]
        whole += [self.padding] * (self.length - len(whole))
        device = self.text_encoder.device
        with torch.autocast(device.type, enabled=False):
            return self.text_encoder(torch.tensor([whole], device=device)).last_hidden_state
