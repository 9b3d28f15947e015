"""The arguments of every command, and the installed program `bilstm-attn`."""
