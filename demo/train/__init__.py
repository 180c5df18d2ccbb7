"""How the demo policy and its bags were made; needs the extra ``libero``."""
