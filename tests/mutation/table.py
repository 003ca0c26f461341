"""All mutants. Make `old` long enough to occur once, and name few tests that notice it quickly."""

from __future__ import annotations

from mutation import of_files, of_models, of_recipe, of_selection, of_state

_MODULES = (of_recipe, of_selection, of_state, of_files, of_models)
MUTANTS = tuple(mutant for module in _MODULES for mutant in module.MUTANTS)
