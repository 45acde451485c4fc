// Package pki makes the certificates of one database: a certificate authority that rotates with overlap, and leaves
// that are renewed well before they end.
//
// Rotation has three steps, each separated by enough time for every process to have loaded what the step before
// published, so that at no moment two processes of a database trust disjoint authorities:
//
//  1. introduce: a next authority is made and published in the bundle; nothing is signed by it yet
//  2. promote: the next authority signs; all leaves are issued anew; the old one stays in the bundle
//  3. forget: an authority past its end leaves the bundle
//
// When the authority that signs is lost, its successor begins at once, with what the lost one signed trusted beside it, and
// existing leaves are issued anew only once its certificate has been published for as long as in a rotation.
//
// Everything here is values in, values out; the only I/O is reading randomness. Where the values are kept (Secrets)
// is the business of package controller.
package pki
