"""Prompts with named places: our own wording by default, or a benchmark's own from a clone of it.

A place is `{name}`; filling it is a replacement and nothing else, so that a template from outside can name no attribute
and format no number, and braces in a text stay.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from megatron_ultralong.errors import UserError
from megatron_ultralong.evaluation.samples import Form, Sample

OWN = "megatron_ultralong"
"""What results call our own wording."""

_PLACE = re.compile(r"\{(\w+)\}")


@dataclasses.dataclass(frozen=True)
class Template:
    """A prompt in both forms.

    Attributes:
        base: for a model that continues texts.
        chat: what the user says.
        lead: in base form how the answer begins, kept apart from the prompt.
    """

    base: str
    chat: str
    lead: str = ""

    def asked(self, sample: Sample, form: Form, fields: Mapping[str, str]) -> Sample:
        """The sample with its prompt.

        Raises:
            UserError: a place is none of the fields.
        """
        text, lead = (self.base, self.lead) if form == "base" else (self.chat, "")
        return dataclasses.replace(sample, form=form, input=fill(text, fields), answer_prefix=fill(lead, fields))


def fill(template: str, fields: Mapping[str, Any]) -> str:
    """A template with its places filled.

    Raises:
        UserError: a place is none of the fields.
    """

    def value(place: re.Match[str]) -> str:
        name = place.group(1)
        if name not in fields:
            raise UserError(
                f"a prompt's template has a place {{{name}}}, and the data only {', '.join(fields)}; "
                "give --official a clone whose templates are for this task, or leave it out."
            )
        return str(fields[name])

    return _PLACE.sub(value, template)
