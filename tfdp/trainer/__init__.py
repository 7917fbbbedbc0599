"""``tfdp.fit``, ``tfdp.evaluate`` and ``tfdp.predict``: the outer loops, callbacks, timing."""
