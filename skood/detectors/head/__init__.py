"""Methods on features and the head behind them."""
