"""How should prefill and decode share one GPU?"""
