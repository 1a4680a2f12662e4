"""Numbers that a recipe's fields take, with their bounds: checked wherever a recipe is changed."""

from typing import Annotated

from pydantic import Field

Rate = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
