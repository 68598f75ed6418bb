"""Objects to plain files and back: nobody is locked in.

Both ways go entry by entry: one that can't be written, read or named is left out and named, and the
others go on. Only what concerns all of them ends it: a full disk, no more descriptors, the store
itself. Repeating one that was interrupted goes on with it, as what is the same is skipped."""
