"""The training steps of a language model as pure losses, in the order in which a chat model goes through them."""
