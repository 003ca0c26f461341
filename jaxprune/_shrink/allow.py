"""`allow`: cuts that change the function, which users may ask for."""

from collections.abc import Sequence

from jaxprune._base.arguments import shown

LAYER_NORM = "layer_norm"


def allowed(function: str, allow: Sequence[str]) -> bool:
    """Whether means may run over fewer entries, from the argument `allow` of a public function.

    Raises:
      ValueError: it is not a sequence of known names.
    """
    names = allow if isinstance(allow, (tuple, list)) else [allow]
    is_known = [isinstance(name, str) and name == LAYER_NORM for name in names]
    if names is not allow or not all(is_known):
        raise ValueError(
            f"{function}: allow must be a tuple of names, of which there is one, {LAYER_NORM!r}, "
            f"got {shown(allow)}. Pass allow=({LAYER_NORM!r},), or leave it out."
        )
    return bool(names)
