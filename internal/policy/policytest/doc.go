// Package policytest says, as tables and as a generator, what a fabric that enforces
// network security groups must do, and checks one against it.
//
// A Fabric is whatever carries packets under rules: the kernel with the compiled text, the
// text interpreted in Go (Text), and whatever comes later. Run gives it the tables of
// Cases, then random rule sets and flows, and compares which packets arrive, and which
// rule decided about each, with policy.Evaluator. Package testseed gives the seed.
//
// It is for tests alone.
package policytest
