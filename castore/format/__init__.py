"""The layouts of bytes, all of them: FORMAT.md in code. Decoders take untrusted bytes."""
