"""What a federated round is: pure functions, which import nothing above them."""
