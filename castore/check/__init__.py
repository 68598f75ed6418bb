"""What the checks of both kinds share: packs, frames and objects, and what to say of them."""
