"""What a machine keeps of stores on S3, so that it is not fetched again."""
