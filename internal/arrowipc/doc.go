// Package arrowipc reads and writes Arrow IPC streams one message at a time, without
// decoding record batches.
//
// It owns the framing (continuation, lengths, end-of-stream marker) and the few
// fields of a message's metadata that a relay needs: what it is, how long its body
// is, how many rows it has. It does not own batches, dictionaries or compression:
// those bytes pass through as they came. The service's front ends use it to pass
// results on and to count them; the gateway to check and to encode schemas.
//
// A stream is whole only if its end-of-stream marker came: Reader.Next returns
// io.EOF then and at no other time.
package arrowipc
