"""The names of a store on S3, whatever object their manifests are in: `look` at one, `listing` of
many, and on both `writing`, which has the whole `Namespace`."""
