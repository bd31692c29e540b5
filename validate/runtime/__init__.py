"""The real runtime: the deployments of `splitwiser.sim`, in processes on a real device.

`splitwiser.validate.execute` runs one. Inside: an owner process holds the weights and the KV pool
(`owner`, `arena`), worker processes map them and take steps on the device (`host`, `runner`,
`transformer`), and the router replays the trace and collects the tokens (`router`, `recorder`).
"""
