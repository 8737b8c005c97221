"""The operator's command: who may call whom, with which keys, and the switch that stops all dialling."""
