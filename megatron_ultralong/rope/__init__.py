"""RoPE scaling as pure arithmetic: the formulas, how config.json spells them, and the recipes. No torch."""
