"""Who a caller is: providers vouch for users, tokens stand for them afterwards."""
