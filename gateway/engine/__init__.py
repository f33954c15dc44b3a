"""The engine process, its wire and its clients. Only `gateway.engine.session` imports onnxruntime."""
