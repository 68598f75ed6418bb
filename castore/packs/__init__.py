"""Where packs live: `local` files read through mmap."""
