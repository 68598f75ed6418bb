"""What pipelines use of the former Conducto's `conducto.shared`."""
