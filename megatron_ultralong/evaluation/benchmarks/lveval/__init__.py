"""LV-Eval: 11 bilingual sets of questions at five lengths up to 256K words."""
